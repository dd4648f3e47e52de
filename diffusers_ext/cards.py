def write_text_to_image_card(d): pass
