"""Tables, galleries and charts as data, and what renders them."""
