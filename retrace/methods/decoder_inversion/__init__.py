"""Methods that look for the code of a decoder's output."""
