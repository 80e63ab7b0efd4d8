"""What scores are made of: measures of images, and what each problem counts."""
