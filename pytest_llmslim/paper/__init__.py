"""The paper behind the score (arXiv 2502.00046): its published tables, its models, its figures.

`tables.py` reads what was published, `scores.py` scores published rows and records alike, `charts.py` arranges scores
as figures 2 to 5, `mapping.py` says which model stands for which of the paper's names on this machine.
"""
