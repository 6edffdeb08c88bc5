"""What every part of a model is made of: settings that say its weights, and the module that holds them."""
