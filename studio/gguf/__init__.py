"""Language models as llama.cpp and Ollama have them: adapters written as GGUF, merged into a GGUF base, a Modelfile."""
