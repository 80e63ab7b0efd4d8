"""What this project claims about speed, measured side by side with what a user would do instead."""
