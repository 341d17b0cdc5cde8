"""Does the committed study follow from the released results?  `make verify`, or python -m onebit.verify.

    tables    every notebook is executed on released results alone, and its tables are compared cell by cell
    training  one short run is trained again, and its losses are compared
    metrics   released metrics are computed again from released samples (needs the data set)
"""
