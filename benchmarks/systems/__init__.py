"""How each system is started, asked and stopped: ours and the peers behind one small interface."""
