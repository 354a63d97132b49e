"""Running models: the step engine, sampling, text generation and streaming."""
