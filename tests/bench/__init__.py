"""Side-by-side measurements, run by `make bench`. They assert nothing: a loaded machine is no defect."""
