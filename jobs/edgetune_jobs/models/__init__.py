"""Models and adapters as folders of safetensors: inspected, loaded, merged, saved. Imports data, store and errors."""
