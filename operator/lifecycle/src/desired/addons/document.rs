//! Configuration as people read it: YAML with sorted keys, from the same value always the same text.

use std::collections::BTreeMap;

use serde_json::Value;

/// The value as a YAML document. Strings are quoted as in JSON, which YAML understands.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

fn write(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            for (at, (key, value)) in sorted.into_iter().enumerate() {
                // The first key of an element of a list stands behind its dash.
                if at > 0 || !text.ends_with("- ") {
                    text.push_str(&" ".repeat(indent));
                }
                text.push_str(key);
                text.push(':');
                nested(value, indent, text);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                text.push_str(&" ".repeat(indent));
                text.push_str("- ");
                if matches!(value, Value::Object(map) if !map.is_empty()) {
                    write(value, indent.saturating_add(2), text);
                } else {
                    text.push_str(&value.to_string());
                    text.push('\n');
                }
            }
        }
        scalar => {
            text.push_str(&scalar.to_string());
            text.push('\n');
        }
    }
}

fn nested(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            write(value, indent.saturating_add(2), text);
        }
        Value::Array(list) if !list.is_empty() => {
            text.push('\n');
            write(value, indent, text);
        }
        scalar => {
            text.push(' ');
            write(scalar, indent, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let value = json!({
            "b": {"text": "a: \"b\" #c\n", "empty": {}, "none": null, "list": []},
            "a": [1, true, "0m", {"r": [{"s": 1}], "p": {"q": 2}}, [], "@"],
        });
        let text = yaml(&value);
        assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), value, "{text}");
        insta::assert_snapshot!(text, @r#"
        a:
        - 1
        - true
        - "0m"
        - p:
            q: 2
          r:
          - s: 1
        - []
        - "@"
        b:
          empty: {}
          list: []
          none: null
          text: "a: \"b\" #c\n"
        "#);
    }
}
