//! What a hostile chat template can make this process hold. A file of its own, since it measures its whole process.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use assay_model::template::MAX_TEMPLATE_MEMORY;
use assay_model::{ChatTemplate, Conversation, TemplateError};

/// The most memory that this process has had at once, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn no_template_grows_beyond_the_limit() {
    let loop_of =
        |set: &str, body: &str| format!("{set}{{% for i in range(200) %}}{body}{{% endfor %}}{{{{ ns.s }}}}");
    let string = "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}";
    let list = "{% set ns = namespace(s=['x']) %}";
    let raw = "y".repeat(200_000);
    let hostile = [
        loop_of(string, "{% set ns.s = ns.s ~ ns.s %}"),
        loop_of(string, "{% set ns.s = ns.s + ns.s %}"),
        loop_of(string, "{% set ns.s = ns.s * 2 %}"),
        loop_of(string, "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}"),
        loop_of(string, "{% macro m() %}{{ ns.s }}{{ ns.s }}{% endmacro %}{% set ns.s = m() %}"),
        loop_of(string, "{% set ns.s = ns.s.replace('x', 'xxxx') %}"),
        loop_of(string, "{% set ns.s = ns.s | replace('x', 'xxxx') %}"),
        loop_of(string, "{% set ns.s = [ns.s, ns.s, ns.s] | join(ns.s) %}"),
        loop_of(string, "{% set ns.s = ns.s.join([ns.s, ns.s, ns.s]) %}"),
        loop_of(string, "{% set ns.s = [ns.s, ns.s] | string %}"),
        loop_of(string, "{% set ns.s = [ns.s, ns.s] | tojson %}"),
        loop_of(string, "{% set ns.s = '%s%s' | format(ns.s, ns.s) %}"),
        loop_of(string, "{% set ns.s = '{}{}'.format(ns.s, ns.s) %}"),
        loop_of(list, "{% set ns.s = ns.s + ns.s %}"),
        loop_of(list, "{% set ns.s = ns.s * 2 %}"),
        loop_of(list, "{% set ns.s = [ns.s, ns.s] %}"),
        format!("{}{{% set t = ns.s ~ '' %}}", loop_of(list, "{% set ns.s = [ns.s, ns.s] %}").replace("{{ ns.s }}", "")),
        format!("{}{{% set t = ns.s | tojson %}}", loop_of(list, "{% set ns.s = [ns.s, ns.s] %}").replace("{{ ns.s }}", "")),
        format!("{}{{{{ ns.s | map('string') | list }}}}", loop_of(list, "{% set ns.s = [ns.s, ns.s] %}").replace("{{ ns.s }}", "")),
        format!("{{% set s %}}{{% for i in range(60000) %}}{raw}{{% endfor %}}{{% endset %}}"),
        "{{ 'x' * 10**9 }}".into(),
        "{{ 'x' * 100000000 }}".into(),
        "{{ (['x'] * 10**8) ~ '' }}".into(),
        "{% set x = 'x' %}{{ 10**9 * x }}".into(),
        "{% set x = ['x'] %}{{ x * 10**12 | list }}".into(),
        "{% set x = ['x'] %}{{ (x * 10**12) | select | list }}".into(),
        "{{ 'x\nx' | indent(10**9) }}".into(),
        "{{ 'x' | indent(width=10**9, first=true) }}".into(),
        "{{ '%1000000000d' | format(1) }}".into(),
        "{{ '{:>1000000000}'.format(1) }}".into(),
        "{% set l = range(100000) | list %}{% set ns = namespace(s=[]) %}{% for i in range(20000) %}{% set ns.s = ns.s + [l | reverse | list] %}{% endfor %}".into(),
        "{{ ['x'] | map('replace', 'x', 'y' * 1000) | list }}".into(),
        "{{ [] | batch(10**9, 'x') | list }}".into(),
        "{% include 'chat' %}".into(),
        "{{ dict(*[1]) }}".into(),
    ];
    let before = peak();
    for source in &hostile {
        let short: String = source.chars().take(120).collect();
        let template = match ChatTemplate::new(source, "", "") {
            Ok(template) => template,
            Err(TemplateError::Syntax(_)) => continue,
            Err(other) => panic!("{short}: {other}"),
        };
        let rendered = template.render(&Conversation {
            messages: &[],
            tools: None,
            add_generation_prompt: true,
            now_unix_s: 0,
        });
        match rendered {
            Err(
                TemplateError::TooMuchMemory
                | TemplateError::TooMuchOutput
                | TemplateError::OutOfFuel(_)
                | TemplateError::Failed(_),
            ) => {}
            other => panic!("{short}: {:?}", other.map(|text| text.len())),
        }
        let more = peak() - before;
        assert!(more < 2 * MAX_TEMPLATE_MEMORY, "{short}: {} MiB", more >> 20);
    }
}
