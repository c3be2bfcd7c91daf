"""One batch on one network: rows, methods, and their action around each evaluation of the network; knows no loop."""
