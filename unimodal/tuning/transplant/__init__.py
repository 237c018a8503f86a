"""A text tokenizer moved under a base: the rows of its tokens begin as mixtures of the base's."""
