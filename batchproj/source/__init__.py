"""Where items come from: a URL in, pages of `listing_schema` rows out. One file per kind."""
