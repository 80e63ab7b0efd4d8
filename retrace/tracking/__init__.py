"""What is published to MLflow, and the store that it is published to."""
