"""Who annotates, and what that costs."""
