"""The speed of training beside other libraries: `make bench`, or `python -m speed` in the folder `benchmarks`."""
