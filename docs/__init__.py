"""Documents, and what makes their pictures and the outputs of the notebook."""
