"""What results look like: plots and widgets. The only room that imports matplotlib and ipywidgets."""
