"""The names of the files in a detector's folder."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
OPERATING_POINT_FILE = "operating_point.json"
FEATURES_FILE = "features.safetensors"
ONNX_FILE = "model.onnx"
