"""One batch on one network: its rows, its methods, and what these do around each evaluation of the network; knows no loop."""
