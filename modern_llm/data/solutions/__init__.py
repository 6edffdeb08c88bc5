"""Problems, and answers to them that are marked right or wrong."""
