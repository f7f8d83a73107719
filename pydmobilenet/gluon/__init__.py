"""The reference engine, Apache MXNet's Gluon. Nothing else imports mxnet; this file does not either."""
