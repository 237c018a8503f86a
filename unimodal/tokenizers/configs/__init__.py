"""Published systems as settings: one YAML file a system and size, and what is known of it with its source."""
