"""Methods side by side on a layout benchmark: arms become rows of one table, judged pictures become tables of a paper."""
