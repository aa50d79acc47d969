"""Language models: n-grams and Transformers, their training data, scores and perplexity."""
