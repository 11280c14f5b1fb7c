"""An HTML page as its reader sees it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """A page: its elements with the names of their attributes, what stands in them, and what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.values, self.images, self.words = [], [], [], []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join([*self.words, *(image["alt"] for image in self.images)]).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, tuple(name for name, _ in attributes)))
        self.values += attributes
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        self.elements.append(("comment", data))

    def says(self, words):
        return " ".join(words.split()) in self.text

    def pictures(self, called):
        return [image for image in self.images if image["alt"].startswith(called)]


DRAWN = {"svg", "g", "use", "path", "defs", "clipPath", "rect", "image", "style", "metadata"}
DRAWN |= {"RDF", "Work", "type", "format", "creator", "Agent", "title"}  # of what the metadata say
