"""What this project claims about speed, measured side by side with what a user would do instead."""

import stages  # noqa: F401  (answers --help before torch is imported)
