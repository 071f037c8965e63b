"""Files of other libraries, made and checked by their own code."""
