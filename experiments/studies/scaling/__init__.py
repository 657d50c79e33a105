"""The scaling study: which learning rate transfers, where compute is best spent, and how far the fit predicts."""
