"""Sources: from the strings of `data.sources` to documents, split into those trained on and those held out.

Read `opening` first; `readers` has a function a file format, `compressed` what they read through. `shakespeare`,
`copying` and `tfds` are the sources that are not files of the user's; `tfds_text` prepares a TensorFlow dataset.
"""
