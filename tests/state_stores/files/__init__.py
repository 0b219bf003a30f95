"""Store files that earlier versions have written, and the system that wrote them."""
