//! The one function that changes a bucket's state: every way that there is, and none that there is not.

use dormouse::pause::{BucketState, Event, PauseId, Refusal};
use proptest::prelude::*;

const ARCHIVE: &str = "file:///archive";

fn first() -> PauseId {
    "0000000001-00000000000000aa".parse().unwrap()
}

fn second() -> PauseId {
    "0000000002-00000000000000ab".parse().unwrap()
}

fn archive() -> String {
    ARCHIVE.to_owned()
}

fn began() -> Event {
    Event::Began { archive: archive() }
}

fn paused(evicted: bool) -> BucketState {
    BucketState::Paused { pause: first(), archive: archive(), evicted }
}

fn resuming(evicted: bool) -> BucketState {
    BucketState::Resuming { pause: first(), archive: archive(), evicted }
}

fn in_doubt() -> BucketState {
    BucketState::InDoubt { pause: first(), archive: archive() }
}

fn preparing() -> BucketState {
    BucketState::Preparing { archive: archive() }
}

fn pausing() -> BucketState {
    BucketState::Pausing { pause: first(), archive: archive() }
}

fn publishing() -> BucketState {
    BucketState::Publishing { pause: first(), archive: archive() }
}

fn all_states() -> Vec<BucketState> {
    let (online, evicted) = (BucketState::Online, paused(true));
    vec![
        online,
        preparing(),
        pausing(),
        publishing(),
        in_doubt(),
        paused(false),
        evicted,
        resuming(false),
        resuming(true),
    ]
}

fn all_events() -> Vec<Event> {
    vec![
        began(),
        Event::Cut { pause: first() },
        Event::Publishing,
        Event::Published,
        Event::Lost,
        Event::Absent,
        Event::Evicting,
        Event::Waking { pause: first() },
        Event::Waking { pause: second() },
        Event::Resumed,
        Event::Failed,
        Event::Restarted,
    ]
}

fn walk(from: &BucketState, events: impl IntoIterator<Item = Event>) -> BucketState {
    events.into_iter().fold(from.clone(), |state, event| state.after(event).unwrap())
}

#[test]
fn a_bucket_goes_to_sleep_and_wakes_up_step_by_step() {
    let mut state = BucketState::Online;
    for (event, expected) in [
        (began(), preparing()),
        (Event::Cut { pause: first() }, pausing()),
        (Event::Publishing, publishing()),
        (Event::Published, paused(false)),
        (Event::Evicting, paused(true)),
        (Event::Waking { pause: first() }, resuming(true)),
        (Event::Resumed, BucketState::Online),
    ] {
        state = state.after(event).unwrap();
        assert_eq!(state, expected);
    }
}

#[test]
fn a_failure_leads_back_to_the_last_state_that_lasts() {
    for begun in [preparing(), pausing()] {
        assert_eq!(walk(&begun, [Event::Failed]), BucketState::Online);
    }
    for evicted in [false, true] {
        let pause = if evicted { second() } else { first() };
        assert_eq!(walk(&paused(evicted), [Event::Waking { pause }, Event::Failed]), paused(evicted));
    }
}

#[test]
fn what_is_published_is_never_given_up_without_knowing() {
    assert!(publishing().after(Event::Failed).is_err());
    assert_eq!(walk(&publishing(), [Event::Lost]), in_doubt());
    assert_eq!(walk(&publishing(), [Event::Restarted]), in_doubt());
    assert_eq!(walk(&in_doubt(), [Event::Restarted]), in_doubt());
    assert_eq!(walk(&in_doubt(), [Event::Published]), paused(false));
    assert_eq!(walk(&in_doubt(), [Event::Absent]), BucketState::Online);
}

#[test]
fn a_restart_leads_every_state_to_one_that_lasts() {
    let expected = [
        BucketState::Online,
        BucketState::Online,
        BucketState::Online,
        in_doubt(),
        in_doubt(),
        paused(false),
        paused(true),
        paused(false),
        paused(true),
    ];
    for (state, expected) in all_states().into_iter().zip(expected) {
        assert_eq!(walk(&state, [Event::Restarted]), expected);
        assert_eq!(state.is_lasting(), state == expected, "{state}");
    }
}

#[test]
fn beginnings_that_are_not_possible_say_why() {
    let asleep = Refusal::Asleep { pause: first(), archive: archive() };
    let doubtful = Refusal::InDoubt { pause: first(), archive: archive() };
    assert_eq!(paused(false).after(began()), Err(asleep));
    assert_eq!(in_doubt().after(began()), Err(doubtful.clone()));
    assert_eq!(in_doubt().after(Event::Waking { pause: first() }), Err(doubtful.clone()));
    assert_eq!(BucketState::Online.after(Event::Waking { pause: first() }), Err(Refusal::Awake));
    let other = paused(false).after(Event::Waking { pause: second() });
    assert_eq!(other, Err(Refusal::OtherPause { wanted: second(), there: first() }));
    let text = doubtful.to_string();
    assert!(
        text.contains(&first().to_string()) && text.contains(ARCHIVE) && text.contains("resume"),
        "{text}"
    );
}

#[test]
fn only_these_steps_follow_on_each_other() {
    let mut steps = 0;
    for state in all_states() {
        for event in all_events() {
            match state.after(event.clone()) {
                Ok(_) => steps += 1,
                Err(Refusal::OutOfOrder { state: named }) => assert_eq!(named, state.to_string()),
                Err(_) => assert!(matches!(event, Event::Began { .. } | Event::Waking { .. }), "{event:?}"),
            }
        }
    }
    // Nine restarts, seven of a pause that publishes and loses its way, and the others.
    assert_eq!(steps, 9 + (1 + 2 + 2 + 3 + 3) + (2 + 3) + (2 + 2));
}

#[test]
fn a_state_is_read_back_as_it_was_written() {
    for state in all_states() {
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<BucketState>(&text).unwrap(), state);
    }
    let before = r#"{"state":"paused","pause":"0000000001-00000000000000aa","archive":"file:///archive","evicted":false}"#;
    assert_eq!(serde_json::from_str::<BucketState>(before).unwrap(), paused(false));
}

proptest! {
    /// Whatever happens in whatever order: a pause exists only after it was published, changes are refused
    /// exactly while it may exist, and a restart leads nowhere but to what was known before.
    #[test]
    fn no_order_of_events_forgets_or_invents_a_pause(choices in prop::collection::vec(0..12_usize, 0..60)) {
        let events = all_events();
        let (mut state, mut was_published, mut may_be_published) = (BucketState::Online, false, false);
        for choice in choices {
            let event = events[choice].clone();
            let Ok(next) = state.after(event.clone()) else { continue };
            match (&event, &next) {
                (Event::Publishing, _) => may_be_published = true,
                (Event::Published, _) => was_published = true,
                (Event::Absent | Event::Resumed, _) => (was_published, may_be_published) = (false, false),
                _ => {}
            }
            match &next {
                BucketState::Paused { .. } | BucketState::Resuming { .. } => prop_assert!(was_published),
                BucketState::InDoubt { .. } => prop_assert!(may_be_published && !was_published),
                BucketState::Online => prop_assert!(!may_be_published),
                _ => prop_assert!(!was_published),
            }
            prop_assert_eq!(next.after(Event::Restarted).unwrap().is_lasting(), true);
            prop_assert_eq!(
                next.closed_for_writes().is_some(),
                was_published || matches!(next, BucketState::InDoubt { .. })
            );
            state = next;
        }
    }
}
