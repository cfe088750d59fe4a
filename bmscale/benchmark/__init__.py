"""Speed, measured: named cases of our own and of rival systems on the same data, in one run."""
