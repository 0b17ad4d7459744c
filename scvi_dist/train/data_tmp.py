from scvi_dist.dataloaders.loader import make_plan
from scvi_dist.dataloaders.local_loader import LocalLoader


class CellDataModule:
    def __init__(self, source, split, batch_size, seed, loader, rank, world):
        opened = source.open()
        kw = dict(batch_size=batch_size, world=world, seed=seed)
        self.train_plan = make_plan(split.train, opened.store, loader, **kw)
        self.train_loader = LocalLoader(self.train_plan, opened, loader, rank, world)
        self.validation_loader = None
        if split.validation.n:
            vplan = make_plan(split.validation, opened.store, loader, shuffle=False, **kw)
            self.validation_loader = LocalLoader(vplan, opened, loader, rank, world)

    def close(self):
        pass
