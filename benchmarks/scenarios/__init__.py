"""What is measured: each scenario is asked of a system and returns figures."""
