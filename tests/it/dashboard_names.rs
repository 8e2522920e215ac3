//! The dashboards with a catalogue of channels, which is written here as `powerview channels --apply` stores it: names,
//! roles, circuits, hidden, computed and replaced channels, and names that are hostile to queries.

use crate::dashboards::{
    Channel, Known, MONO, SLAVE, TRI, at, integrated, known, mean, near, number, rollup,
    six_digits, steps,
};
use crate::grafana::{self, Choice, Frame, View, panel, panels};
use crate::real_influx::RealInflux;
use chrono::{DateTime, Duration, Utc};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const SITE: &str = "site été";
/// A local day in Paris, and the instant from which the new meter counts.
const DAY: (&str, &str) = ("2026-06-01T22:00:00Z", "2026-06-02T22:00:00Z");
const REPLACED: &str = "2026-06-02T10:00:00Z";

type Points = Vec<(DateTime<Utc>, f64)>;

/// A point each ten minutes of the day, and one at its end.
fn day(value: impl Fn(f64) -> f64) -> Points {
    let time = |i: u32| at(DAY.0) + Duration::minutes(10 * i64::from(i));
    (0..=144_u32)
        .map(|i| (time(i), value(f64::from(i))))
        .collect()
}

fn channel(master: &'static str, device: &'static str, number: u32, name: &'static str) -> Channel {
    Channel {
        master,
        device,
        name,
        unit: "W",
        number,
    }
}

/// A text as a tag or as a measurement in line protocol.
fn tag(text: &str) -> String {
    text.replace(',', "\\,").replace(' ', "\\ ")
}

/// An entry of the stored catalogue: its id and the fields that are not empty.
type Entry<'a> = (&'a str, &'a [(&'a str, &'a str)]);

fn catalogue(campaign: &str, entries: &[Entry<'_>]) -> String {
    let fields = [
        "label", "circuit", "phase", "role", "hidden", "merged", "valid", "unit", "device",
        "channel", "terms", "state",
    ];
    let line = |(id, given): &Entry<'_>| {
        let value = |field: &str| {
            let value = given.iter().find(|g| g.0 == field).map_or("", |g| g.1);
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            format!("{field}=\"{value}\"")
        };
        assert!(given.iter().all(|g| fields.contains(&g.0)), "{given:?}");
        format!(
            "powerview_channels,campaign={},channel_id={} {} 4102444800\n",
            tag(campaign),
            tag(id),
            fields.map(value).join(",")
        )
    };
    entries.iter().map(line).collect()
}

/// The hourly summaries of a power that is computed, as points in line protocol.
fn summaries(campaign: &str, id: &str, device: &str, points: &Points) -> String {
    let hours = integrated(points);
    let mut lines = String::new();
    for (hour, values) in steps(points, 3600) {
        let known = hours.get(&hour).copied().unwrap_or_default();
        let (min, max) = values.iter().fold((f64::MAX, f64::MIN), |(min, max), v| {
            (v.min(min), v.max(max))
        });
        lines += &format!(
            "powerview_1h,campaign={},channel_id={id},channel_name={id},channel_number=0,channel_type=virtual,device={device},\
             device_master_sn={},device_sn={device},unit=W count={}i,covered_s={}i,energy_in_wh={:?},energy_out_wh={:?},\
             max={max:?},mean={:?},min={min:?} {}\n",
            tag(campaign),
            if device == SLAVE { TRI } else { device },
            values.len(),
            known.seconds,
            known.drawn * 1000.0,
            known.returned * 1000.0,
            mean(&values),
            hour.timestamp()
        );
    }
    lines
}

/// The id of the channel that counts as one with the old meter before it.
const GENERAL: &str = "V_S04000466_Ch5_M02001171";
const REST: &str = "V_reste";

/// A site with a catalogue of everything that a catalogue can say.
struct Site {
    server: RealInflux,
    master: Value,
    /// By the label, with the real points of the channels that are shown.
    shown: BTreeMap<&'static str, Points>,
}

const ENTRIES: [Entry<'_>; 13] = [
    (
        "M02001171_Ch1_M02001171",
        &[
            ("label", "Four"),
            ("circuit", "Cuisine"),
            ("phase", "L1"),
            ("role", "part"),
        ],
    ),
    (
        "M02001171_Ch2_M02001171",
        &[
            ("label", "Plaque"),
            ("circuit", "Cuisine"),
            ("phase", "L2"),
            ("role", "part"),
        ],
    ),
    (
        "M02001171_Ch3_M02001171",
        &[
            ("label", "Hotte"),
            ("circuit", "Cuisine"),
            ("phase", "L3"),
            ("role", "part"),
        ],
    ),
    ("M02001171_Ch4_M02001171", &[("label", "Tension")]),
    (
        "M02001171_Ch5_M02001171",
        &[("label", "Secret V"), ("hidden", "yes")],
    ),
    (
        "S04000466_Ch1_M02001171",
        &[("label", "Arrivée"), ("phase", "L2"), ("role", "total")],
    ),
    (
        "S04000466_Ch2_M02001171",
        &[("label", "Panneaux"), ("role", "production")],
    ),
    (
        "S04000466_Ch3_M02001171",
        &[("label", "Secret W"), ("role", "total"), ("hidden", "yes")],
    ),
    ("S04000466_Ch4_M02001171", &[("label", "Débit d'eau")]),
    (
        "S04000466_Ch5_M02001171",
        &[
            ("label", "Général"),
            ("role", "total"),
            ("merged", GENERAL),
            ("valid", "1780394400/"),
        ],
    ),
    (
        "M02001311_Ch1_M02001311",
        &[
            ("label", "Général"),
            ("role", "other"),
            ("merged", GENERAL),
            ("valid", "/1780394400"),
        ],
    ),
    (
        GENERAL,
        &[
            ("label", "Général"),
            ("role", "total"),
            ("device", SLAVE),
            ("terms", "{}"),
        ],
    ),
    (
        REST,
        &[
            ("label", "Reste"),
            ("circuit", "Autres"),
            ("device", "virtuel"),
            ("terms", "{}"),
        ],
    ),
];

impl Site {
    fn new() -> Option<Self> {
        let server = RealInflux::start()?;
        let shines = |i: f64| (48.0..108.0).contains(&i);
        let (a, b, c) = (
            day(|i| 100.0 + (i * 37.0) % 101.0),
            day(|i| 50.0 + (i * 17.0) % 89.0),
            day(|i| 20.0 + (i * 29.0) % 53.0),
        );
        let grid = day(|i| {
            if shines(i) {
                -300.0 - (i * 7.0) % 31.0
            } else {
                1500.0 + (i * 13.0) % 97.0
            }
        });
        let solar = day(|i| if shines(i) { -2000.0 - i } else { 0.0 });
        let (old, new) = (
            day(|i| 300.0 + (i * 7.0) % 31.0),
            day(|i| 1600.0 + (i * 11.0) % 29.0),
        );
        let flow = day(|i| (i * 3.0) % 7.0);
        let mut lines = String::new();
        let volt = |number: u32, name: &'static str| Channel {
            unit: "V",
            ..channel(TRI, TRI, number, name)
        };
        let unitless = Channel {
            unit: "",
            ..channel(TRI, SLAVE, 4, "Débit")
        };
        for (channel, points) in [
            (channel(TRI, TRI, 1, "D39L1"), &a),
            (channel(TRI, TRI, 2, "D39L2"), &b),
            (channel(TRI, TRI, 3, "D39L3"), &c),
            (volt(4, "Ph 1"), &flow),
            (volt(5, "Ph 2"), &flow),
            (channel(TRI, SLAVE, 1, "Voie1"), &grid),
            (channel(TRI, SLAVE, 2, "Voie2"), &solar),
            (channel(TRI, SLAVE, 3, "Voie3"), &day(|i| 5000.0 + i)),
            (unitless, &flow),
            (channel(TRI, SLAVE, 5, "Neuf"), &new),
            (channel(MONO, MONO, 1, "Vieux"), &old),
        ] {
            for (time, value) in points {
                lines += &channel.point(SITE, *time, *value);
            }
        }
        server.write("acme", &lines, "s");
        rollup(&server);

        let general: Points = old
            .iter()
            .filter(|p| p.0 < at(REPLACED))
            .chain(new.iter().filter(|p| p.0 >= at(REPLACED)))
            .copied()
            .collect();
        let rest: Points = (0..a.len())
            .map(|i| (a[i].0, grid[i].1 - a[i].1 - b[i].1 - c[i].1))
            .collect();
        let computed =
            summaries(SITE, GENERAL, SLAVE, &general) + &summaries(SITE, REST, "virtuel", &rest);
        server.write("acme", &computed, "s");
        server.write("acme", &catalogue(SITE, &ENTRIES), "s");
        let shown = BTreeMap::from([
            ("Arrivée", grid),
            ("Four", a),
            ("Général", general),
            ("Hotte", c),
            ("Panneaux", solar),
            ("Plaque", b),
            ("Reste", rest),
        ]);
        Some(Self {
            server,
            master: grafana::dashboard("master"),
            shown,
        })
    }

    fn view(&self, window_s: u64) -> View {
        View::of(&self.master, "acme", SITE, DAY, window_s)
    }

    fn rows(&self, view: &View, kind: &str, title: &str) -> Vec<BTreeMap<String, String>> {
        view.rows(&self.server, panel(&self.master, kind, title))
    }

    fn known(&self, label: &str) -> Known {
        known(&integrated(&self.shown[label]), (at(DAY.0), at(DAY.1)))
    }

    /// The total power in steps: the sum of the means of two channels.
    fn total(&self, step: i64) -> BTreeMap<DateTime<Utc>, f64> {
        let mut total = BTreeMap::new();
        for label in ["Arrivée", "Général"] {
            let within: Points = self.shown[label]
                .iter()
                .filter(|p| p.0 < at(DAY.1))
                .copied()
                .collect();
            for (time, values) in steps(&within, step) {
                *total.entry(time).or_insert(0.0) += mean(&values);
            }
        }
        total
    }
}

fn texts(view: &View, server: &RealInflux, name: &str) -> BTreeSet<String> {
    view.offered(server, name)
        .into_iter()
        .map(|o| o.0)
        .collect()
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

#[test]
fn the_variables_offer_the_names_of_channels_that_are_shown() {
    let Some(site) = Site::new() else { return };
    let (view, server) = (site.view(600), &site.server);
    assert_eq!(
        texts(&view, server, "channels"),
        set([
            "Arrivée",
            "Débit d'eau",
            "Four",
            "Général",
            "Hotte",
            "Panneaux",
            "Plaque",
            "Reste"
        ])
    );
    assert_eq!(texts(&view, server, "total"), set(["Arrivée", "Général"]));
    let values: BTreeSet<_> = view
        .offered(server, "channels")
        .into_iter()
        .map(|o| o.1)
        .collect();
    assert!(
        values.contains(GENERAL) && values.contains(REST),
        "{values:?}"
    );
    let of_slave = view.with("device", Choice::Some(vec![SLAVE.into()]));
    assert_eq!(
        texts(&of_slave, server, "channels"),
        set(["Arrivée", "Débit d'eau", "Général", "Panneaux"])
    );
    assert_eq!(
        texts(&of_slave, server, "device"),
        set([TRI, SLAVE, MONO, "virtuel"])
    );
}

#[test]
fn tables_and_curves_show_names_and_computed_and_replaced_channels() {
    let Some(site) = Site::new() else { return };
    let view = site.view(1800);
    let rows = site.rows(&view, "table", "Bilan par voie");
    let found: BTreeMap<_, _> = rows.iter().map(|r| (&*r["Voie"], r)).collect();
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        site.shown.keys().copied().collect::<Vec<_>>()
    );
    assert_eq!(rows.len(), found.len());
    for (label, row) in &found {
        let known = site.known(label);
        six_digits(number(&row["Énergie (kWh)"]), known.net(), label);
        six_digits(number(&row["Connue (%)"]), known.seconds / 864.0, label);
        let within = site.shown[label].iter().filter(|p| p.0 < at(DAY.1));
        // Computed channels have the highest value, the others the highest mean, of points that are ten minutes apart.
        let peak = within.map(|p| p.1).fold(f64::MIN, f64::max);
        near(number(&row["Pointe (W)"]), peak, label);
    }
    assert_eq!(found["Général"]["Appareil"], SLAVE);
    assert_eq!(found["Reste"]["Appareil"], "virtuel");

    let curves = |window_s: u64| {
        let view = site.view(window_s);
        view.series(
            &site.server,
            panel(&site.master, "timeseries", "Puissance par voie"),
        )
    };
    for (window, step) in [(1800, 1800), (3600, 3600), (7200, 7200)] {
        let series = curves(window);
        let names: Vec<_> = series.iter().map(|s| &*s.0).collect();
        assert_eq!(
            names,
            site.shown.keys().copied().collect::<Vec<_>>(),
            "{window} s"
        );
        for (label, line) in &series {
            let points: Points = site.shown[&**label]
                .iter()
                .filter(|p| p.0 < at(DAY.1))
                .copied()
                .collect();
            // A computed channel is known hourly.
            let step = if label == "Reste" {
                step.max(3600)
            } else {
                step
            };
            let found: Vec<_> = line.iter().filter_map(|p| Some((at(&p.0), p.1?))).collect();
            let wanted = steps(&points, step);
            assert_eq!(found.len(), wanted.len(), "{label}, {window} s");
            for ((time, value), (start, values)) in found.into_iter().zip(&wanted) {
                assert_eq!(time, *start, "{label}, {window} s");
                near(value, mean(values), &format!("{label}, {window} s, {time}"));
            }
        }
    }
    let others = view.series(
        &site.server,
        panel(&site.master, "timeseries", "Autres mesures"),
    );
    assert_eq!(
        others.iter().map(|s| &*s.0).collect::<Vec<_>>(),
        ["Débit d'eau"]
    );
    let voltages = view.series(&site.server, panel(&site.master, "timeseries", "Tensions"));
    assert_eq!(
        voltages.iter().map(|s| &*s.0).collect::<Vec<_>>(),
        ["Tension"]
    );
}

#[test]
fn the_total_is_that_of_the_channels_of_its_role() {
    let Some(site) = Site::new() else { return };
    let view = site.view(600);
    let (grid, general) = (site.known("Arrivée"), site.known("Général"));
    let row = site.rows(&view, "stat", "Énergie").remove(0);
    six_digits(
        number(&row["Soutirée (kWh)"]),
        grid.drawn + general.drawn,
        "drawn",
    );
    six_digits(number(&row["Injectée (kWh)"]), grid.returned, "returned");

    for step in [600, 1800, 3600, 7200_u32] {
        let view = site.view(step.into());
        let series = view.series(
            &site.server,
            panel(&site.master, "timeseries", "Puissance totale"),
        );
        let [(_, line)] = &series[..] else {
            panic!("{series:?}")
        };
        let found: Vec<_> = line.iter().filter_map(|p| Some((at(&p.0), p.1?))).collect();
        let wanted = site.total(step.into());
        assert_eq!(found.len(), wanted.len(), "{step} s");
        for (time, value) in found {
            near(value, wanted[&time], &format!("{step} s, {time}"));
        }
    }
    for (text, step) in [("10m", 600), ("15m", 900), ("30m", 1800), ("1h", 3600)] {
        let view = view.clone().with("pas", Choice::One(text.into()));
        let row = site.rows(&view, "stat", "Puissance totale").remove(0);
        let highest = site
            .total(step)
            .into_iter()
            .fold((at(DAY.0), f64::MIN), |highest, p| {
                if p.1 > highest.1 { p } else { highest }
            });
        six_digits(number(&row["Pointe (kW)"]) * 1000.0, highest.1, text);
        let millis = f64::from(i32::try_from(highest.0.timestamp()).expect("before 2038")) * 1000.0;
        near(number(&row["Heure de la pointe"]), millis, text);
    }

    // A computed channel in the total is known hourly.
    let chosen = Choice::Some(vec!["S04000466_Ch1_M02001171".into(), REST.into()]);
    let with_rest = view.clone().with("total", chosen);
    let row = site.rows(&with_rest, "stat", "Puissance totale").remove(0);
    let mut hours: BTreeMap<_, f64> = BTreeMap::new();
    for label in ["Arrivée", "Reste"] {
        let within: Points = site.shown[label]
            .iter()
            .filter(|p| p.0 < at(DAY.1))
            .copied()
            .collect();
        for (hour, values) in steps(&within, 3600) {
            *hours.entry(hour).or_default() += mean(&values);
        }
    }
    let highest = hours.values().copied().fold(f64::MIN, f64::max);
    six_digits(
        number(&row["Pointe horaire (kW)"]) * 1000.0,
        highest,
        "hourly peak",
    );
    let series = with_rest.series(
        &site.server,
        panel(&site.master, "timeseries", "Puissance totale"),
    );
    let found: BTreeMap<_, _> = series[0]
        .1
        .iter()
        .filter_map(|p| Some((at(&p.0), p.1?)))
        .collect();
    assert_eq!(found.len(), hours.len());
    for (time, value) in found {
        near(value, hours[&time], &format!("{time}"));
    }

    // Production is that of the role, or what a hand chooses.
    let production = |view: &View| {
        site.rows(view, "stat", "Production et autoconsommation")
            .remove(0)
    };
    let made = site.known("Panneaux").returned;
    let own = made - grid.returned;
    let row = production(&view);
    six_digits(number(&row["Produite (kWh)"]), made, "production");
    six_digits(
        number(&row["Autoconsommation (%)"]),
        own / made * 100.0,
        "share",
    );
    let by_hand = view.with(
        "production",
        Choice::Some(vec!["M02001171_Ch1_M02001171".into()]),
    );
    six_digits(
        number(&production(&by_hand)["Produite (kWh)"]),
        site.known("Four").drawn,
        "chosen",
    );
}

#[test]
fn circuits_and_phases_are_those_of_the_catalogue() {
    let Some(site) = Site::new() else { return };
    let view = site.view(600);
    let energies =
        |rows: &[BTreeMap<String, String>], name: &str, energy: &str| -> BTreeMap<String, f64> {
            rows.iter()
                .map(|r| (r[name].clone(), number(&r[energy])))
                .collect()
        };
    let rows = site.rows(&view, "table", "Énergie par circuit");
    let found = energies(&rows, "Circuit", "Énergie (kWh)");
    let net = |label: &str| site.known(label).net();
    let wanted = [
        ("Arrivée", net("Arrivée")),
        ("Autres", net("Reste")),
        ("Cuisine", net("Four") + net("Plaque") + net("Hotte")),
        ("Général", net("Général")),
        ("Panneaux", net("Panneaux")),
    ];
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for (circuit, energy) in wanted {
        six_digits(found[circuit], energy, circuit);
    }
    // The phase of the grid is given. The meter is the fifth channel of a device with two phases.
    let rows = site.rows(&view, "barchart", "Énergie par phase (kWh)");
    let found = energies(&rows, "Phase", "Énergie");
    assert_eq!(found.len(), 2, "{found:?}");
    six_digits(found["Phase 1"], net("Général"), "the meter");
    six_digits(found["Phase 2"], net("Arrivée"), "the grid");

    // The sum of the parts does not exceed the total.
    let findings = |view: &View| site.rows(view, "table", "Voies qui se contredisent");
    assert_eq!(findings(&view), []);
    let parts: Vec<Entry<'_>> = vec![
        (
            "S04000466_Ch2_M02001171",
            &[("label", "Panneaux"), ("role", "other")],
        ),
        (GENERAL, &[("label", "Général"), ("role", "part")]),
    ];
    site.server.write("acme", &catalogue(SITE, &parts), "s");
    let rows = findings(&view.refreshed());
    assert_eq!(rows.len(), 1, "{rows:?}");
    let (total, sum) = (
        net("Arrivée"),
        net("Four") + net("Plaque") + net("Hotte") + net("Général"),
    );
    assert!(sum > total);
    assert_eq!(rows[0]["Constat"], "les parties dépassent le total");
    six_digits(number(&rows[0]["Énergie (kWh)"]), sum, "the parts");
    six_digits(
        number(&rows[0]["Écart (%)"]),
        (sum / total - 1.0) * 100.0,
        "too much",
    );
}

/// All texts that a dashboard gets: the answers of its panels and what its variables offer.
fn all_texts(view: &View, server: &RealInflux, dashboard: &Value) -> BTreeSet<String> {
    let mut texts = BTreeSet::new();
    for frame in panels(dashboard)
        .into_iter()
        .flat_map(|p| view.frames(server, p))
    {
        match frame {
            Frame::Series { name, .. } => drop(texts.insert(name)),
            Frame::Rows(rows) => {
                for row in rows {
                    texts.extend(row.into_iter().flat_map(|(column, value)| [column, value]));
                }
            }
        }
    }
    for definition in &view.definitions {
        if definition["type"] == "query" {
            let name = definition["name"].as_str().expect("a name");
            texts.extend(
                view.offered(server, name)
                    .into_iter()
                    .flat_map(|(text, value)| [text, value]),
            );
        }
    }
    texts
}

#[test]
fn a_hidden_channel_is_nowhere_and_a_changed_catalogue_is_everywhere() {
    let Some(site) = Site::new() else { return };
    let overview = grafana::dashboard("overview");
    let company = View::of(&overview, "acme", "Vue d'ensemble", DAY, 600);
    let both = || {
        let mut texts = all_texts(&site.view(600), &site.server, &site.master);
        texts.extend(all_texts(&company.refreshed(), &site.server, &overview));
        texts
    };
    let contains = |texts: &BTreeSet<String>, what: &str| texts.iter().any(|t| t.contains(what));
    let texts = both();
    for hidden in [
        "Secret",
        "Ph 2",
        "Voie3",
        "_Ch3_M02001171\u{1}",
        "Neuf",
        "Vieux",
        "Voie1",
        "D39",
    ] {
        assert!(!contains(&texts, hidden), "{hidden} in {texts:#?}");
    }
    for shown in site.shown.keys().chain(&["Débit d'eau", "Tension"]) {
        assert!(texts.contains(*shown), "{shown} is not in {texts:#?}");
    }

    // The overview counts the same channels.
    let drawn = |view: &View| {
        let rows = view.rows(
            &site.server,
            panel(&overview, "table", "Bilan par campagne"),
        );
        rows.iter()
            .map(|r| number(&r["Soutirée (kWh)"]))
            .fold(0.0, f64::max)
    };
    six_digits(
        drawn(&company),
        site.known("Arrivée").drawn + site.known("Général").drawn,
        "overview",
    );
    for title in [
        "Énergie par heure, jour, semaine ou mois (kWh)",
        "Énergie par campagne et par mois (kWh)",
    ] {
        let p = panels(&overview)
            .into_iter()
            .find(|p| p["title"] == title)
            .expect(title);
        let rows = company.rows(&site.server, p);
        let sum: f64 = rows
            .iter()
            .filter_map(|r| Some(number(r.get("Énergie")?)))
            .sum();
        six_digits(sum, drawn(&company), title);
    }
    let offered = texts_of_campaign(&company, &site.server);
    assert_eq!(
        offered,
        set(["(aucune)", "site été - Arrivée", "site été - Général"])
    );

    // Another name and role, one that is hidden now, and one that is not any more.
    let changed: Vec<Entry<'_>> = vec![
        (
            "S04000466_Ch1_M02001171",
            &[("label", "Grid"), ("role", "other")],
        ),
        (
            "S04000466_Ch3_M02001171",
            &[("label", "Secret W"), ("role", "total")],
        ),
        (
            GENERAL,
            &[("label", "Général"), ("role", "total"), ("hidden", "yes")],
        ),
        (REST, &[("state", "removed")]),
    ];
    site.server.write("acme", &catalogue(SITE, &changed), "s");
    let texts = both();
    assert!(
        !contains(&texts, "Arrivée") && !contains(&texts, "Général"),
        "{texts:#?}"
    );
    assert!(
        texts.contains("Grid") && texts.contains("Secret W"),
        "{texts:#?}"
    );
    let view = site.view(600);
    let row = site.rows(&view, "stat", "Énergie").remove(0);
    let secret = known(&integrated(&day(|i| 5000.0 + i)), (at(DAY.0), at(DAY.1)));
    six_digits(
        number(&row["Soutirée (kWh)"]),
        secret.drawn,
        "the new total",
    );
    six_digits(
        drawn(&company.refreshed()),
        secret.drawn,
        "the new total of the overview",
    );
}

fn texts_of_campaign(company: &View, server: &RealInflux) -> BTreeSet<String> {
    texts(company, server, "exclues")
}

/// Text that could end a string, a regular expression, a comment or a variable, or be one.
const HOSTILE: [&str; 10] = [
    "a\"b",
    "${pas} $1 [[pas]] ${__dashboard.name:regex}",
    "<b onclick=\"x()\">gras</b>",
    "\") |> drop() //",
    "a/b /* c */",
    "#1 # a#b",
    "a, b;c=d",
    "(.*)|[^x]+?\\d{2}$^",
    "back\\slash\\",
    "r => r._value v.timeRangeStart",
];

#[test]
fn names_are_harmless_whatever_characters_they_have() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let master = grafana::dashboard("master");
    // A device and a campaign with characters of regular expressions and of Flux.
    let campaign = "L'été (1/2)* ${pas} #[a]+ \\d, b";
    let device = "0/4$[6]#(.*)";
    let mut lines = String::new();
    let mut entries: Vec<(String, &str)> = Vec::new();
    for (number, label) in (1..).zip(HOSTILE) {
        let channel = channel(device, device, number, "Voie, 1/2 #");
        for (time, _) in day(|_| 0.0) {
            lines += &channel.point(campaign, time, f64::from(number) * 100.0);
        }
        entries.push((channel.id(), label));
    }
    server.write("acme", &lines, "s");
    rollup(&server);
    let view = View::of(&master, "acme", campaign, DAY, 600)
        .with("souscrite", Choice::One("36\" ${pas} \\ / (".into()));
    let labels: BTreeSet<String> = HOSTILE.map(str::to_owned).into();
    let named = |texts: BTreeSet<String>| {
        texts
            .intersection(&labels)
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    let rows = view.rows(&server, panel(&master, "table", "Bilan par voie"));
    assert!(rows.iter().all(|r| r["Voie"] == "Voie, 1/2 #"), "{rows:?}");
    assert_eq!(rows.len(), HOSTILE.len());

    let pairs: Vec<_> = entries
        .iter()
        .map(|(id, label)| {
            (
                id.as_str(),
                [
                    ("label", *label),
                    ("circuit", *label),
                    ("phase", "L1\"/${x}#"),
                ],
            )
        })
        .collect();
    let lines: Vec<Entry<'_>> = pairs
        .iter()
        .map(|(id, fields)| (*id, &fields[..]))
        .collect();
    server.write("acme", &catalogue(campaign, &lines), "s");
    let view = view.refreshed();
    assert_eq!(named(all_texts(&view, &server, &master)), labels);
    for title in ["Bilan par voie", "Énergie par circuit"] {
        let column = if title == "Bilan par voie" {
            "Voie"
        } else {
            "Circuit"
        };
        let rows = view.rows(&server, panel(&master, "table", title));
        assert_eq!(
            rows.iter()
                .map(|r| r[column].clone())
                .collect::<BTreeSet<_>>(),
            labels,
            "{title}"
        );
    }
    let series = view.series(&server, panel(&master, "timeseries", "Puissance par voie"));
    assert_eq!(
        series.into_iter().map(|s| s.0).collect::<BTreeSet<_>>(),
        labels
    );
    let phases = view.rows(
        &server,
        panel(&master, "barchart", "Énergie par phase (kWh)"),
    );
    assert_eq!(
        phases.iter().map(|r| &*r["Phase"]).collect::<Vec<_>>(),
        ["L1\"/${x}#"]
    );
    let row = view
        .rows(&server, panel(&master, "stat", "Puissance totale"))
        .remove(0);
    near(
        number(&row["De la souscrite (%)"]),
        5.5 / 36.0 * 100.0,
        "of the subscribed power",
    );

    // Each can be chosen by its name, and all but the first.
    let offered = view.offered(&server, "channels");
    assert_eq!(offered.len(), HOSTILE.len());
    for (text, id) in &offered {
        let one = view
            .clone()
            .with("channels", Choice::Some(vec![id.clone()]));
        let rows = one.rows(&server, panel(&master, "table", "Bilan par voie"));
        assert_eq!(rows.iter().map(|r| &r["Voie"]).collect::<Vec<_>>(), [text]);
    }
    let device = view
        .clone()
        .with("device", Choice::Some(vec![device.into()]));
    assert_eq!(device.offered(&server, "channels"), offered);
    let ids = offered[1..].iter().map(|o| o.1.clone()).collect();
    let rest = view.clone().with("total", Choice::Some(ids));
    let energy = rest
        .rows(&server, panel(&master, "stat", "Énergie"))
        .remove(0);
    let all = view
        .rows(&server, panel(&master, "stat", "Énergie"))
        .remove(0);
    near(number(&all["Soutirée (kWh)"]), 5.5 * 24.0, "all");
    let left_out = entries
        .iter()
        .position(|e| e.0 == offered[0].1)
        .expect("an id");
    let kw = f64::from(u32::try_from(left_out).expect("few") + 1) / 10.0;
    near(
        number(&energy["Soutirée (kWh)"]),
        (5.5 - kw) * 24.0,
        "all but one",
    );

    // The overview of the company, too.
    let overview = grafana::dashboard("overview");
    let company = View::of(&overview, "acme", "Vue d'ensemble", DAY, 600);
    let company = company.with("campaign", Choice::Some(vec![campaign.into()]));
    let own = panels(&overview).into_iter();
    for p in own.filter(|p| grafana::shares(p).is_none()) {
        assert!(!company.frames(&server, p).is_empty(), "{}", p["title"]);
    }
    let offered: BTreeSet<_> = texts(&company, &server, "exclues");
    let wanted = HOSTILE.map(|label| format!("{campaign} - {label}"));
    assert!(wanted.iter().all(|w| offered.contains(w)), "{offered:?}");
}

/// Grafana inserts text of users into queries. In any other format, it could change them.
#[test]
fn the_queries_insert_variables_as_escaped_regular_expressions_only() {
    for name in ["master", "overview"] {
        let dashboard = grafana::dashboard(name);
        let variables = dashboard["templating"]["list"]
            .as_array()
            .expect("variables");
        let of_variables = variables.iter().filter(|v| v["type"] == "query");
        let of_variables = of_variables.map(|v| v["query"].as_str().expect("Flux"));
        let of_panels = panels(&dashboard).into_iter().flat_map(grafana::queries);
        for query in of_variables.chain(of_panels) {
            for inserted in query.split("${").skip(1) {
                let inside = inserted.split('}').next().expect("a name");
                assert!(inside.ends_with(":regex"), "{name}: {inside}");
            }
        }
    }
}
