"""The experiments of the paper behind the score (arXiv 2502.00046); they run only when they are named.

pytest suites/paper                                    # on the embedded models: the whole way, other figures
pytest suites/paper --llm-models-map hub --llm-text wiki.test.raw
pytest suites/paper --llm-models-map models.toml --llm-data DIR
pytest suites/paper --llm-published                    # the published tables alone
"""
