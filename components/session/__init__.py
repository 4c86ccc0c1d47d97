"""What one visitor has chosen: its state, undo, its recipe in addresses and files, and what leaves with them."""
