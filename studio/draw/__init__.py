"""Pictures from adapters: recipes, the generate and grid commands' work, and making a picture again."""
