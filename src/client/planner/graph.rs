//! Path searches on a small directed graph: shortest path, cheapest node-disjoint set, next-best paths.
//!
//! All costs are in microseconds and additive. Vertices are numbered; ties are broken by number, so that the
//! same graph always gives the same paths.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

/// A path: vertices from source to target, both included.
pub(super) type Path = Vec<usize>;

/// Costs of the directed links between numbered vertices; at most one link a pair.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    /// By vertex: (to, cost), ordered by `to`.
    links: Vec<Vec<(usize, u64)>>,
}

impl Graph {
    pub(super) fn new(vertices: usize) -> Self {
        Self { links: vec![Vec::new(); vertices] }
    }

    /// Adds a link; of two between the same pair the cheaper one stays.
    pub(super) fn add(&mut self, from: usize, to: usize, cost: u64) {
        match self.links[from].binary_search_by_key(&to, |link| link.0) {
            Ok(at) => self.links[from][at].1 = self.links[from][at].1.min(cost),
            Err(at) => self.links[from].insert(at, (to, cost)),
        }
    }

    /// Cost of the link, where there is one.
    pub(super) fn link(&self, from: usize, to: usize) -> Option<u64> {
        self.links[from].binary_search_by_key(&to, |link| link.0).ok().map(|at| self.links[from][at].1)
    }

    /// Cost of a path whose links all exist.
    pub(super) fn cost(&self, path: &[usize]) -> u64 {
        path.windows(2).map(|pair| self.link(pair[0], pair[1]).expect("a path is made of links")).sum()
    }

    /// The cheapest path (Dijkstra) that avoids some vertices and some first links.
    fn shortest(
        &self,
        source: usize,
        target: usize,
        avoid: &BTreeSet<usize>,
        not_first: &BTreeSet<usize>,
    ) -> Option<Path> {
        let mut best = vec![(u64::MAX, usize::MAX); self.links.len()];
        let mut queue = BinaryHeap::from([Reverse((0, source))]);
        best[source].0 = 0;
        while let Some(Reverse((cost, at))) = queue.pop() {
            if at == target {
                let mut path = vec![target];
                while path[path.len() - 1] != source {
                    path.push(best[path[path.len() - 1]].1);
                }
                path.reverse();
                return Some(path);
            }
            if cost > best[at].0 {
                continue;
            }
            for &(to, length) in &self.links[at] {
                if avoid.contains(&to) || (at == source && not_first.contains(&to)) {
                    continue;
                }
                if cost + length < best[to].0 {
                    best[to] = (cost + length, at);
                    queue.push(Reverse((cost + length, to)));
                }
            }
        }
        None
    }

    /// The next-best simple paths in order of cost, at most `count` (Yen 1971).
    pub(super) fn simple_paths(&self, source: usize, target: usize, count: usize) -> Vec<Path> {
        let Some(first) = self.shortest(source, target, &BTreeSet::new(), &BTreeSet::new()) else { return Vec::new() };
        let mut found = vec![first];
        let mut candidates = BTreeSet::new();
        while found.len() < count {
            let last = &found[found.len() - 1];
            for spur in 0..last.len() - 1 {
                let root = &last[..=spur];
                let taken = found
                    .iter()
                    .filter(|path| path.len() > spur + 1 && path[..=spur] == *root)
                    .map(|path| path[spur + 1])
                    .collect();
                let avoid = root[..spur].iter().copied().collect();
                if let Some(rest) = self.shortest(root[spur], target, &avoid, &taken) {
                    let path: Path = root[..spur].iter().copied().chain(rest).collect();
                    candidates.insert((self.cost(&path), path));
                }
            }
            loop {
                match candidates.pop_first() {
                    Some((_, path)) if found.contains(&path) => {}
                    Some((_, path)) => break found.push(path),
                    None => return found,
                }
            }
        }
        found
    }

    /// For each number of paths from 1 to `most`, as far as there are that many: the set of node-disjoint
    /// paths with the smallest total cost.
    ///
    /// Minimum-cost flow by successive shortest paths (Suurballe 1974, Bhandari 1999): every vertex is split
    /// into an arriving and a leaving half joined by an arc that can be used once, so a later path may take back
    /// part of an earlier one. That is what the shortest path first, then the shortest of what is left, gets wrong.
    pub(super) fn disjoint_paths(&self, source: usize, target: usize, most: usize) -> Vec<Vec<Path>> {
        let mut flow = Flow::new(self, source, target);
        let mut sets = Vec::new();
        while sets.len() < most && flow.augment() {
            let mut paths = flow.paths();
            paths.sort_by_key(|path| (self.cost(path), path.clone()));
            sets.push(paths);
        }
        sets
    }
}

/// An arc of the split graph; its reverse is at its index with the last bit flipped.
struct Arc {
    to: usize,
    cost: i64,
    is_free: bool,
}

struct Flow {
    arcs: Vec<Arc>,
    /// By half vertex (2 v arriving, 2 v + 1 leaving): its arcs.
    leaving: Vec<Vec<usize>>,
    source: usize,
    target: usize,
}

impl Flow {
    fn new(graph: &Graph, source: usize, target: usize) -> Self {
        let halves = graph.links.len() * 2;
        let mut flow =
            Self { arcs: Vec::new(), leaving: vec![Vec::new(); halves], source: source * 2 + 1, target: target * 2 };
        for (from, links) in graph.links.iter().enumerate() {
            flow.add(from * 2, from * 2 + 1, 0);
            for &(to, cost) in links {
                flow.add(from * 2 + 1, to * 2, cost as i64);
            }
        }
        flow
    }

    fn add(&mut self, from: usize, to: usize, cost: i64) {
        self.leaving[from].push(self.arcs.len());
        self.arcs.push(Arc { to, cost, is_free: true });
        self.leaving[to].push(self.arcs.len());
        self.arcs.push(Arc { to: from, cost: -cost, is_free: false });
    }

    /// Sends one more unit along the cheapest way of the residual graph (Bellman-Ford: arcs taken back cost less
    /// than nothing). False where there is none.
    fn augment(&mut self) -> bool {
        let mut best = vec![(i64::MAX, usize::MAX); self.leaving.len()];
        best[self.source].0 = 0;
        loop {
            let mut has_changed = false;
            for half in 0..self.leaving.len() {
                if best[half].0 == i64::MAX {
                    continue;
                }
                for &index in &self.leaving[half] {
                    let arc = &self.arcs[index];
                    if arc.is_free && best[half].0 + arc.cost < best[arc.to].0 {
                        best[arc.to] = (best[half].0 + arc.cost, index);
                        has_changed = true;
                    }
                }
            }
            if !has_changed {
                break;
            }
        }
        if best[self.target].0 == i64::MAX {
            return false;
        }
        let mut at = self.target;
        while at != self.source {
            let index = best[at].1;
            self.arcs[index].is_free = false;
            self.arcs[index ^ 1].is_free = true;
            at = self.arcs[index ^ 1].to;
        }
        true
    }

    /// The paths that the units sent so far take.
    fn paths(&self) -> Vec<Path> {
        let is_used = |index: &usize| index.is_multiple_of(2) && !self.arcs[*index].is_free;
        let starts = self.leaving[self.source].iter().copied().filter(is_used);
        starts
            .map(|mut index| {
                let mut path = vec![self.source / 2];
                loop {
                    let half = self.arcs[index].to;
                    if half.is_multiple_of(2) {
                        path.push(half / 2);
                    }
                    if half == self.target {
                        return path;
                    }
                    index = *self.leaving[half].iter().find(|i| is_used(i)).expect("what comes in goes out");
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All simple paths, cheapest first, by trying everything.
    fn every_path(graph: &Graph, source: usize, target: usize) -> Vec<Path> {
        fn walk(graph: &Graph, target: usize, path: &mut Path, found: &mut Vec<Path>) {
            let at = path[path.len() - 1];
            if at == target {
                return found.push(path.clone());
            }
            for &(to, _) in &graph.links[at] {
                if !path.contains(&to) {
                    path.push(to);
                    walk(graph, target, path, found);
                    path.pop();
                }
            }
        }
        let mut found = Vec::new();
        walk(graph, target, &mut vec![source], &mut found);
        found.sort_by_key(|path| (graph.cost(path), path.clone()));
        found
    }

    fn are_disjoint(one: &[usize], other: &[usize]) -> bool {
        let inner = &one[1..one.len() - 1];
        !other[1..other.len() - 1].iter().any(|vertex| inner.contains(vertex)) && one != other
    }

    /// Smallest total cost of `count` disjoint paths, by trying every combination.
    fn cheapest_disjoint(graph: &Graph, paths: &[Path], count: usize, chosen: &mut Vec<Path>) -> Option<u64> {
        if count == 0 {
            return Some(0);
        }
        let mut best = None;
        for (at, path) in paths.iter().enumerate() {
            if chosen.iter().all(|other| are_disjoint(path, other)) {
                chosen.push(path.clone());
                if let Some(rest) = cheapest_disjoint(graph, &paths[at + 1..], count - 1, chosen) {
                    let total = rest + graph.cost(path);
                    best = Some(best.map_or(total, |known: u64| known.min(total)));
                }
                chosen.pop();
            }
        }
        best
    }

    #[test]
    fn the_trap_does_not_catch_it() {
        // 0-1-2-5 is shortest and blocks both of 0-1-4-5 and 0-3-2-5.
        let mut graph = Graph::new(6);
        for (from, to, cost) in [(0, 1, 1), (1, 2, 1), (2, 5, 1), (1, 4, 4), (4, 5, 1), (0, 3, 4), (3, 2, 1)] {
            graph.add(from, to, cost);
        }
        let sets = graph.disjoint_paths(0, 5, 3);
        assert_eq!(sets, [vec![vec![0, 1, 2, 5]], vec![vec![0, 1, 4, 5], vec![0, 3, 2, 5]]]);
    }

    proptest! {
        #[test]
        fn searches_agree_with_trying_everything(
            vertices in 2usize..7,
            links in proptest::collection::vec((0usize..7, 0usize..7, 1u64..20), 0..25),
        ) {
            let mut graph = Graph::new(vertices);
            for (from, to, cost) in links {
                if from < vertices && to < vertices && from != to {
                    graph.add(from, to, cost);
                }
            }
            let (source, target) = (0, vertices - 1);
            let every = every_path(&graph, source, target);

            let found = graph.simple_paths(source, target, 5);
            let costs = |paths: &[Path]| paths.iter().map(|path| graph.cost(path)).collect::<Vec<_>>();
            prop_assert_eq!(costs(&found), costs(&every[..every.len().min(5)]));
            prop_assert!(found.iter().all(|path| every.contains(path)));

            let sets = graph.disjoint_paths(source, target, 3);
            for count in 1..=3 {
                let best = cheapest_disjoint(&graph, &every, count, &mut Vec::new());
                let set = sets.get(count - 1);
                prop_assert_eq!(set.map(|set| set.iter().map(|path| graph.cost(path)).sum()), best);
                if let Some(set) = set {
                    for (at, path) in set.iter().enumerate() {
                        prop_assert!(set[..at].iter().all(|other| are_disjoint(path, other)));
                    }
                }
            }
        }
    }
}
