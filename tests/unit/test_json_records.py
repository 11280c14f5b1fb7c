import json

from kimiajax.io.json_records import differences


def test_differences_are_named_by_their_path():
    before = {"config": {"epochs": 10, "rows": ["cnn"]}, "weights": {"vgg16": "a"}}
    now = {"config": {"epochs": 12, "rows": ["cnn"]}, "weights": {"vgg16": "a", "cnn": "b"}}
    assert differences(before, now) == ["config/epochs was 10 and is 12", 'weights/cnn was null and is "b"']
    assert differences(now, json.loads(json.dumps(now))) == []
