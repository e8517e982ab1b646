"""The API server: a client, typed values for its objects, an index fed by watches, and its errors."""
