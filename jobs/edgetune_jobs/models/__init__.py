"""Models and adapters as folders of safetensors: inspected, loaded, merged."""
