"""Drawing: a picture as Mermaid text, as SVG, as lines of text, and the record of a task as a picture."""
