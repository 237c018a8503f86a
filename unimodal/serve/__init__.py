"""A model behind HTTP: the API that OpenAI's clients speak, and the page that talks to it."""
