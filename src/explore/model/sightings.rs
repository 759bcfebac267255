//! How much of the model a run has reached: the abstract states that it went through, and in which states of the jobs
//! the devices' operations ended.
//!
//! An abstract state is a sum with one summand for each thing in it, so that what an event adds to it is the same
//! wherever the event comes. Nothing here may look at the machine.

use std::collections::BTreeSet;

use smallvec::SmallVec;

use crate::sim::access::mix;

use super::ranges::Ranges;

/// The state of each job, by number; 0: it is gone.
pub type States = SmallVec<[u8; 4]>;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The abstract state.
    pub sum: u64,
    /// The jobs' states.
    pub jobs: States,
}

impl Mark {
    /// Where a run stands here if something happens that leads from `before` to `after` elsewhere.
    pub fn moved(&self, before: &Mark, after: &Mark) -> Mark {
        let sum = self.sum.wrapping_add(after.sum).wrapping_sub(before.sum);
        let mut jobs = self.jobs.clone();
        changed(&before.jobs, &after.jobs).for_each(|(job, state)| set(&mut jobs, job, state));
        Mark { sum, jobs }
    }
}

/// The jobs whose state is another, and that.
fn changed<'a>(before: &'a States, after: &'a States) -> impl Iterator<Item = (u8, u8)> + 'a {
    let is_other = |(job, state): &(usize, &u8)| before.get(*job) != Some(*state);
    after.iter().enumerate().filter(is_other).map(|(job, state)| (job as u8, *state))
}

fn set(jobs: &mut States, job: u8, state: u8) {
    let job = usize::from(job);
    if jobs.len() <= job {
        jobs.resize(job + 1, 0);
    }
    jobs[job] = state;
}

/// The number of a job's state (`qapi/job.json`).
pub fn state_number(state: &str) -> u8 {
    match state {
        "null" => 0,
        "created" => 1,
        "running" => 2,
        "paused" => 3,
        "ready" => 4,
        "standby" => 5,
        "waiting" => 6,
        "pending" => 7,
        "aborting" => 8,
        "concluded" => 9,
        _ => 10,
    }
}

/// The summand of the state of job number `job`.
pub fn state_summand(job: usize, state: u8) -> u64 {
    mix(job as u64, u64::from(state))
}

/// The summand of the marked ranges below `length`: ranges that touch count as one.
pub fn ranges_summand(ranges: &Ranges<bool>, length: u64, salt: u64) -> u64 {
    let edges = ranges.within(0, length).filter(|run| run.value);
    edges.fold(0, |sum, run| sum.wrapping_add(mix(salt, run.start)).wrapping_sub(mix(salt, run.end)))
}

/// What a run has reached.
#[derive(Clone, Debug, Default)]
pub struct Sightings {
    /// Abstract states, and on what occasion.
    states: BTreeSet<(u64, u64)>,
    /// Operations, and in which states of all jobs they ended.
    operations: BTreeSet<(u64, States)>,
}

impl Sightings {
    /// The run is in this state, on an occasion with this number.
    pub fn state(&mut self, occasion: u64, sum: u64) {
        self.states.insert((occasion, sum));
    }

    /// An operation has ended, of which this stands for the kind and the outcome.
    pub fn operation(&mut self, operation: u64, jobs: States) {
        self.operations.insert((operation, jobs));
    }

    /// Takes more in.
    pub fn add(&mut self, mut more: Sightings) {
        self.states.append(&mut more.states);
        self.operations.append(&mut more.operations);
    }

    /// The distinct abstract states.
    pub fn coverage(&self) -> impl Iterator<Item = u64> {
        self.states.iter().map(|(occasion, sum)| mix(*occasion, *sum))
    }

    /// The distinct pairs of a job's state (highest byte) and an operation that ended in it (the rest).
    pub fn cells(&self) -> impl Iterator<Item = u64> {
        self.operations.iter().flat_map(|(operation, jobs)| cells(*operation, jobs.clone()))
    }

    /// What was reached on the way from here on, apart from where that way began.
    pub fn since(&self, mark: &Mark) -> Seen {
        let relative = |(operation, jobs): &(u64, States)| (*operation, changed(&mark.jobs, jobs).collect());
        Seen {
            states: self.states.iter().map(|(occasion, sum)| (*occasion, sum.wrapping_sub(mark.sum))).collect(),
            operations: self.operations.iter().map(relative).collect(),
        }
    }
}

fn cells(operation: u64, jobs: States) -> impl Iterator<Item = u64> {
    jobs.into_iter().filter(|state| *state != 0).map(move |state| u64::from(state) << 56 | operation >> 8)
}

/// What an event has reached, wherever it comes.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    states: Box<[(u64, u64)]>,
    operations: Box<[(u64, Changed)]>,
}

/// Jobs by number, each with its new state.
type Changed = SmallVec<[(u8, u8); 2]>;

impl Seen {
    /// The abstract states, if it comes here.
    pub fn coverage(&self, mark: &Mark) -> impl Iterator<Item = u64> {
        self.states.iter().map(|(occasion, more)| mix(*occasion, mark.sum.wrapping_add(*more)))
    }

    /// The pairs of states and operations, if it comes here.
    pub fn cells(&self, mark: &Mark) -> impl Iterator<Item = u64> {
        self.operations.iter().flat_map(|(operation, changed)| {
            let mut jobs = mark.jobs.clone();
            changed.iter().for_each(|(job, state)| set(&mut jobs, *job, *state));
            cells(*operation, jobs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_event_adds_is_the_same_wherever_it_comes() {
        let marked = |list: &[(u64, u64)]| {
            let mut ranges = Ranges::all(false);
            list.iter().for_each(|(start, bytes)| ranges.set(*start, *bytes, true));
            ranges_summand(&ranges, 100, 7)
        };
        let alone = marked(&[(10, 10)]).wrapping_sub(marked(&[]));
        assert_eq!(marked(&[(20, 10), (10, 10)]).wrapping_sub(marked(&[(20, 10)])), alone, "its neighbour was there");
        assert_eq!(marked(&[(10, 20)]), marked(&[(20, 10), (10, 10)]), "ranges that touch are one");
    }

    #[test]
    fn what_was_seen_on_a_way_is_told_from_where_another_begins() {
        let jobs = |list: &[u8]| States::from_slice(list);
        let (here, there) = (Mark { sum: 5, jobs: jobs(&[2]) }, Mark { sum: 9, jobs: jobs(&[3, 2]) });
        let mut way = Sightings::default();
        way.state(1, 8);
        way.operation(512, jobs(&[2]));
        way.operation(768, jobs(&[7]));
        let seen = way.since(&here);
        assert!(seen.coverage(&here).eq(way.coverage()) && seen.cells(&here).eq(way.cells()));
        assert_eq!(seen.coverage(&there).collect::<Vec<_>>(), [mix(1, 12)]);
        let cells: Vec<u64> = seen.cells(&there).map(|cell| cell >> 56 << 8 | cell & 0xff).collect();
        assert_eq!(cells, [0x302, 0x202, 0x703, 0x203], "the second job's state is what it is there");
        assert_eq!(there.moved(&here, &Mark { sum: 6, jobs: jobs(&[9]) }), Mark { sum: 10, jobs: jobs(&[9, 2]) });
    }
}
