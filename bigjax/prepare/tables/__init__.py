"""Steps on the columns of tables, fitted on the training side only and stored.

What they learn is written to `fitted/STEP.json` of the folder, from which new records can be treated alike.
"""
