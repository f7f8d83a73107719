"""TensorFlow Lite files of networks, for phones and microcontrollers, and LiteRT to run them."""
